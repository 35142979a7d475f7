"""The name under which downstream code imports the reader of slides; it lives in `misc/slides/handler.py`."""

from misc.slides.handler import FileHandler, SlideError, get_file_handler, is_slide, read_reflect

__all__ = ["FileHandler", "SlideError", "get_file_handler", "is_slide", "read_reflect"]
