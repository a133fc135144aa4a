"""kind `provider`: an AI service elsewhere, whose models are offered beside those of this machine."""
