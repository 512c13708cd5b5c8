"""Machine unlearning by gradient-based weight saliency: the library behind the companion book."""

import warnings

__version__ = "0.1.0"

# Progress is shown as text, so that a log can hold it; that no widgets are installed is no news.
warnings.filterwarnings("ignore", message="IProgress not found")
