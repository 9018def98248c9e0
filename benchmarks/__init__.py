"""What the packages claim, measured: reproductions of the papers and speed against other libraries."""
