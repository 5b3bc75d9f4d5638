"""Measuring what models find: COCO figures, result files and reports."""
