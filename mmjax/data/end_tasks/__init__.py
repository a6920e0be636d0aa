"""The data of end tasks: readers of their files, and images and targets as arrays of one size."""
