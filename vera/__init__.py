"""Reproducible experiments for VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., ICLR 2024)."""
