"""The Shapes kit: a small world with the form of COCO, made from nothing but seeds."""
