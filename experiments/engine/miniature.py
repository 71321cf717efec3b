"""The backbone on which the ablations are shown in miniature, and how every table and figure says so."""

OVERRIDES = ["model=digits_vit", "task=digits"]
LABEL = "miniature on the digits ViT"
NOTE = (
    "A miniature, not the paper's experiment: a ViT of four layers (d=128), pretrained on the UCI digits 0-4, learns the "
    "digits 5-9 from ten images a class."
)
SOURCE = f"{LABEL} (accuracy, points)"
SCORE = "Accuracy in percent on the other 846 images of the digits 5-9."
