"""Encoders on sampled blocks, towers and the model that puts them together."""
