"""Prompts to outputs: render, draw, split, draw again."""
