"""Batches: what a training step looks at, drawn from scans in memory.

Everything random comes from the generator.
"""
