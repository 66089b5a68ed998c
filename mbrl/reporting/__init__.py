"""The parts of `mbrl report`: what is gathered from run folders, its figures, and the page."""
