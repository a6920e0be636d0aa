"""The end tasks of pyVTAB: what they read, predict, minimize and report. Imports no TensorFlow."""
