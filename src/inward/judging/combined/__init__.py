"""Judges made of judges: a cascade, a panel, routes. Each is a judge like any other, so that a stage need not know."""
