"""What Hearth adds to an IPython kernel.

kernel:   the kernel application, environment and random numbers per execution
display:  formatters for data frames, charts, JSON; images shown when saved
charts:   what a matplotlib figure shows, as plain data
pressure: output stops the program instead of being dropped or piling up
warm:     imports and first-use work done before the kernel is reported ready
"""
