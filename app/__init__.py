"""The command line and the full-screen app."""

import os

# Textual draws anew between one and two frames after it drew last, and what is typed just then waits so long
# to be seen. It reads this when it is imported; no more is drawn than changes.
os.environ.setdefault("TEXTUAL_FPS", "120")
