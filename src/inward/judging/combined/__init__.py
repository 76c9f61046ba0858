"""Judges made of judges: a cascade, a panel, routes."""
