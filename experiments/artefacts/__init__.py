"""One module for each table or figure: `build`, `draw` where there is a picture, and the claims of the paper it decides."""
