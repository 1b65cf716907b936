"""Models that run elsewhere, behind an OpenAI-compatible API (vLLM, SGLang, llama.cpp's server, Ollama).

None of this imports torch.
"""
