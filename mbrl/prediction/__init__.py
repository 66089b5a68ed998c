"""What `mbrl predict` is made of: segments held out, scores, their summary, and the files they go to."""
