"""What a file's name says before its content is read: whether it may be an image, and what systems leave behind.

Names only estimate and order (counts of a listing, which images are held out). Whether a file is an image is decided by
its content, in `mlpdata.image`.
"""

from __future__ import annotations

import posixpath

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm",
                  ".pgm", ".pbm", ".pnm", ".avif", ".jp2")  # fmt: skip
SYSTEM_FILES = frozenset((".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "icon\r", ".gitkeep",
                          ".gitignore", ".gitattributes", ".nomedia"))  # fmt: skip
SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
                            ".trashes", ".spotlight-v100", ".fseventsd", ".ipynb_checkpoints", ".git", ".cache",
                            ".thumbnails", ".appledouble"))  # fmt: skip


def looks_like_image(name: str) -> bool:
    """Whether a file's name is that of an image: by its ending, in any case, or by having none.

    >>> looks_like_image("a/n01440764_1.JPEG"), looks_like_image("scan.TIFF"), looks_like_image("notes.txt")
    (True, True, False)
    """
    name = posixpath.basename(name)
    return not is_system(name) and (name.lower().endswith(IMAGE_SUFFIXES) or "." not in name)


def is_system(path: str) -> bool:
    """Whether a file is what an operating system or a tool leaves beside data: AppleDouble, thumbnails, and the like.

    >>> is_system("__MACOSX/train/._a.jpg"), is_system("cats/Thumbs.db"), is_system("cats/.hidden.jpg")
    (True, True, False)
    """
    *folders, file = path.lower().split("/")
    return file.startswith("._") or file in SYSTEM_FILES or any(f in SYSTEM_FOLDERS for f in (*folders, file))
