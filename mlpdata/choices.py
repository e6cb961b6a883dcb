"""What options may be: the only lists of formats, codecs, resize rules, filters and engines.

Nothing is imported here: the command line offers these lists without loading numpy, Pillow or torch.
"""

from __future__ import annotations

FORMATS = {"beton": ["beton"], "tar": ["tar"], "both": ["beton", "tar"]}  # what `--format` asks for -> what is written
CODECS = ("raw", "jpg", "png")  # how images are stored; raw is uint8 RGB, rows top to bottom
RESIZES = ("squash", "crop", "longest")
FILTERS = ("box", "bilinear", "bicubic", "lanczos")
ENGINES = ("local", "ray")
MAX_RES = 1024  # pixels a side
