"""All that is to be measured on a GPU, in parts that together take less than ten minutes."""
