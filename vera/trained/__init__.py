"""What finished runs have left: their adapters from the inside, and answers from their weights."""

import vera.models  # which quiets bitsandbytes before PEFT imports it
