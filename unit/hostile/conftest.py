from hypothesis import settings

# For pytest unit/hostile --hypothesis-profile=thorough
settings.register_profile("thorough", max_examples=500)
