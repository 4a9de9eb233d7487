"""Measurements that a design decision rests on, one file each."""
