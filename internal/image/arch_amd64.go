package image

// wheelArch is the machine's name in the tags of Python wheels.
const wheelArch = "x86_64"
