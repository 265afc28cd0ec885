"""Batches: the tensors of a training step, drawn from scans in memory.

Everything random comes from the generator.
"""
