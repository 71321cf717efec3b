"""From records to the paper's tables and figures. Nothing here imports torch."""
