"""Stage ``finetune``: the smaller network is trained, in one go or in stages."""
