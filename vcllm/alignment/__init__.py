"""The adversarial loop's pure logic: no I/O, no models. `services/trainer` connects it to the world."""
