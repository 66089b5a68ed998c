"""What `mbrl pretrain` is made of: one phase of training, and what it shows of itself."""
