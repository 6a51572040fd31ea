"""Attacks: is the concept gone, or only hidden?"""
