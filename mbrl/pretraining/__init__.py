"""Parts of `mbrl pretrain`: phases of training, logging, validation and sample videos."""
