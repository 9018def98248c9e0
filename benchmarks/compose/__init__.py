"""Ideas of several papers in one method, by composing their objects."""
