"""Scores to pairs: length control, best and worst, format errors. Pure functions of records."""
