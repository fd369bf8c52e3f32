"""What a run would cost, before anything is loaded: hardware as data, costs, a simulator. Torch-free."""
