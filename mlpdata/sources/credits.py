"""Licences of data sets and who is to be cited for them, for the cards of exports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Credits:
    """license: the fields that a card on the Hub has for it. citation: BibTeX; "" where nobody is known."""

    license: dict[str, str] = field(default_factory=lambda: {"license": "unknown"})
    citation: str = ""


IMAGENET_TERMS = {
    "license": "other",
    "license_name": "imagenet-agreement",
    "license_link": "https://www.image-net.org/download.php",
}

CIFAR = Credits(
    citation="""
@techreport{krizhevsky2009learning,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year = {2009}
}
"""
)
TINYIMAGENET = Credits(
    citation="""
@misc{le2015tiny,
  title = {Tiny {ImageNet} Visual Recognition Challenge},
  author = {Le, Ya and Yang, Xuan},
  howpublished = {CS 231N, Stanford University},
  year = {2015}
}
"""
)
STL10 = Credits(
    citation="""
@inproceedings{coates2011analysis,
  title = {An Analysis of Single-Layer Networks in Unsupervised Feature Learning},
  author = {Coates, Adam and Ng, Andrew and Lee, Honglak},
  booktitle = {AISTATS},
  year = {2011}
}
"""
)
ILSVRC = Credits(
    IMAGENET_TERMS,
    """
@article{russakovsky2015imagenet,
  title = {{ImageNet} Large Scale Visual Recognition Challenge},
  author = {Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and Ma, Sean and
            Huang, Zhiheng and Karpathy, Andrej and Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and
            Fei-Fei, Li},
  journal = {International Journal of Computer Vision},
  volume = {115},
  number = {3},
  pages = {211--252},
  year = {2015},
  doi = {10.1007/s11263-015-0816-y}
}
""",
)
IMAGENET = Credits(
    IMAGENET_TERMS,
    """
@inproceedings{deng2009imagenet,
  title = {{ImageNet}: A Large-Scale Hierarchical Image Database},
  author = {Deng, Jia and Dong, Wei and Socher, Richard and Li, Li-Jia and Li, Kai and Fei-Fei, Li},
  booktitle = {CVPR},
  pages = {248--255},
  year = {2009},
  doi = {10.1109/CVPR.2009.5206848}
}
""",
)
CREDITS = {
    "CIFAR-10": CIFAR,
    "CIFAR-100": CIFAR,
    "TinyImageNet": TINYIMAGENET,
    "STL-10": STL10,
    "ImageNet-1k": ILSVRC,
    "ImageNet-21k": IMAGENET,
    "Shapes, made on the spot": Credits({"license": "mit"}),  # by this package
}


def credits_of(title: str) -> Credits:
    """The credits of a data set by its title in `mlpdata.datasets`; of other people's folders nothing is known.

    >>> credits_of("ImageNet-1k").license["license_name"], credits_of("Folder of class sub-folders").license
    ('imagenet-agreement', {'license': 'unknown'})
    """
    return CREDITS.get(title, Credits())
