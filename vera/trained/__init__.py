"""What finished runs have left: their adapters from the inside, and answers from their weights."""

import vera.models  # noqa: F401  which quiets bitsandbytes before PEFT imports it
