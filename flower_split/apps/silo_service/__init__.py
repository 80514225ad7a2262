"""The silo service: a process that keeps imports, model and data between a silo's messages.

What a ClientApp's process needs of it (`caller`, `resident`) imports neither torch nor
transformers.
"""
