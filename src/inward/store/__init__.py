"""Stores: object stores and whatever else fsspec reaches by a URL. What a run publishes there, and models that lie there."""
