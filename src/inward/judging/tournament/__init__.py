"""Which battles are asked, and the scores that they come to."""
