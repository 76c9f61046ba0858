"""Which battles are asked, and the strengths that they come to."""
