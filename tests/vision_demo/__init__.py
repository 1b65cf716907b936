"""Makes `assets/demo-vision`, a tiny LLaVA that sees coloured shapes: drawn scenes, questions and training.

Nothing of it is needed to use the model. Train it again with, on a GPU,

    PYTHONPATH=tests python -m vision_demo.train --out assets/demo-vision
"""
