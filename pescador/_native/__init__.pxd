# C that Cython cannot say: a header for each subject, declared in the .pxd of its name and nowhere
# else. Nothing here knows another room.
