"""Networks: modules with weights, and their building blocks. They know no batches and no losses.

Bodies may run in bfloat16 (autocast); heads, velocities and displacements are float32.
"""
