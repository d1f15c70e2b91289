"""The memory bill of a deployment, predicted before anything is started: weights, KV pool, peaks, margin, limits.

Pure: numbers in, numbers out. Files are read only where a path is given (`checkpoint`, `gguf_header`).
"""
