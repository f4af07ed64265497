"""Latency tables and predictors that this project measured itself, each a folder with a card.

``lb.load_predictor(name)`` loads one by its folder's name; ``latbench table list`` lists them with their errors.
"""
