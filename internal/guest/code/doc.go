// Package code is the code interpreter inside a sandbox: the HTTP service of
// port 49999 that runs cells in Jupyter kernels and streams what they produce
// as one JSON object a line, and the doorway of port 8888 behind which a real
// Jupyter Server is started on first use.
//
// It speaks to the kernels directly (ZMTP over unix sockets, HMAC-signed Jupyter
// messages), so that no Jupyter Server, and no second Python process, is part of
// a warm checkpoint. The kernel itself is a real ipykernel: magics, display, comms,
// "!command" and "%pip" work.
//
// # What an image needs
//
// The interpreter is on in images that have the file /etc/hearth/code-interpreter.json
// (see [Marker]); without it [Load] reports fs.ErrNotExist and the guest daemon does
// not serve the two ports. The file for the usual image is
//
//		{
//		  "python": "/opt/hearth/python/bin/python",
//		  "kernel_dirs": ["/opt/hearth/python/share/jupyter/kernels"],
//		  "preload": ["numpy", "pandas", "matplotlib.pyplot"],
//		  "jupyter_server": true
//		}
//
//	  - python (required): the interpreter of the default context. It must have ipykernel
//	    (6.17 or newer; 7.x is what is tested).
//	  - kernel_dirs: directories of Jupyter kernel specs, searched before
//	    /usr/local/share/jupyter/kernels and /usr/share/jupyter/kernels. A kernel found there
//	    is a language that contexts may use ("bash", "r", ...); it is started on first use.
//	    No kernel for "javascript" in the image: such calls answer 500 and say so.
//	  - preload: modules imported into the default kernel before it is reported ready, so
//	    that they are resident in a checkpoint. One that is not installed is skipped.
//	  - jupyter_server: whether "python -m jupyter_server" works; false makes port 8888
//	    answer 503 with the reason.
//
// The ready check of a template is GET :49999/health: 200 "OK" only once the default
// kernel is warm.
//
// # How to build the image
//
// Debian bookworm, packages python3 python3-venv (and what the base template has), then
//
//	python3 -m venv /opt/hearth/python
//	/opt/hearth/python/bin/pip install ipykernel numpy pandas matplotlib pillow jupyter_server bash_kernel
//	/opt/hearth/python/bin/pip uninstall -y debugpy
//	/opt/hearth/python/bin/python -m bash_kernel.install --prefix /opt/hearth/python
//	rm -rf /opt/hearth/python/share/jupyter/kernels/python3/logo*
//	ln -s /opt/hearth/python/bin/{python,python3,pip,pip3} /usr/local/bin/
//	chown -R 1000:1000 /opt/hearth/python
//
// The same packages installed into the system's Python work as well: python is then
// /usr/bin/python3 and kernel_dirs /usr/local/share/jupyter/kernels.
//
// The wheels are preferred to Debian's packages: 293 MB against 516 MB on disk (88
// packages), and current releases of pandas and matplotlib instead of 1.5 and 3.6. The tree
// belongs to user because "%pip install" and "pip install" in a command must land where the
// kernel imports from; the links make both mean the same environment. debugpy is not used
// (the kernel starts without it even when it is installed): leaving it out saves 15 MB.
// Let pip compile the byte code: an import in a sandbox would otherwise compile again in every
// one of them.
//
// # What a warm kernel weighs
//
// Anonymous memory of the process with ipykernel 7.4, Python 3.11, pandas 3.1 and
// matplotlib 3.11: 30.5 MB the kernel alone (a stock one 60.8), 38 with numpy, 67 with
// pandas, 84.7 with pyplot too (stock 97). What makes the difference: no debugger back end
// (30 MB), no history database, freed memory given back before the checkpoint. It uses no
// CPU when idle. The first cell after a Reset takes as long as any other.
//
// # Rules
//
// Kernels run as user "user" in /home/user, each in a process group of its own. One cell
// runs at a time in a context. When the client goes away the cell is interrupted. A slow
// client stops the kernel (back-pressure over the output socket), never grows the
// daemon. After [Service.Reset] no cell sees the environment or the random numbers of the
// machine from which the checkpoint was taken.
package code
