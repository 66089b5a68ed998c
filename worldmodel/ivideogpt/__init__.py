"""iVideoGPT (arXiv 2405.15223): a compressive tokenizer and a video transformer over its tokens."""
