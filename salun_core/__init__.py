"""Machine unlearning by gradient-based weight saliency: the library behind the companion book."""

__version__ = "0.1.0"
