"""Latency models: tables of measured Ops, and regressors for shapes that were never measured."""
