"""How many objects of each extension class are alive. Part of debug builds (CUFRAMES_DEBUG=1) only.

A class's allocator and its opposite are replaced by ones that count, so that classes need to know nothing of it. An
object is counted from its allocation to the very end of its deallocation, whatever holds it.
"""

from cpython.object cimport PyTypeObject


cdef extern from *:
    """
    static struct cf_counted {
        PyTypeObject *type;
        allocfunc alloc;
        freefunc release;
        Py_ssize_t alive;
    } cf_counted[64];
    static int cf_counted_types;

    static struct cf_counted *cf_counted_find(PyTypeObject *type) {
        for (int i = 0; i < cf_counted_types; i++)
            if (cf_counted[i].type == type) return &cf_counted[i];
        return NULL;
    }

    static PyObject *cf_counted_alloc(PyTypeObject *type, Py_ssize_t items) {
        struct cf_counted *c = cf_counted_find(type);
        PyObject *made = c ? c->alloc(type, items) : PyType_GenericAlloc(type, items);
        if (c && made) __atomic_add_fetch(&c->alive, 1, __ATOMIC_RELAXED);
        return made;
    }

    static void cf_counted_free(void *object) {
        struct cf_counted *c = cf_counted_find(Py_TYPE((PyObject *)object));
        __atomic_sub_fetch(&c->alive, 1, __ATOMIC_RELAXED);
        c->release(object);
    }

    /* Python's own subclasses have an allocator and its opposite of their own, and are not counted. */
    static int cf_counted_add(PyTypeObject *type) {
        if (cf_counted_find(type)) return 0;
        if (cf_counted_types == sizeof cf_counted / sizeof *cf_counted) return -1;
        /* Not what the type has: if its base is counted already, it has inherited the functions that count. */
        freefunc release = PyType_IS_GC(type) ? PyObject_GC_Del : PyObject_Free;
        struct cf_counted c = {.type = type, .alloc = PyType_GenericAlloc, .release = release};
        cf_counted[cf_counted_types++] = c;
        type->tp_alloc = cf_counted_alloc;
        type->tp_free = cf_counted_free;
        return 0;
    }

    static Py_ssize_t cf_counted_alive(PyTypeObject *type) {
        return __atomic_load_n(&cf_counted_find(type)->alive, __ATOMIC_RELAXED);
    }
    """
    int cf_counted_add(PyTypeObject* type)
    Py_ssize_t cf_counted_alive(PyTypeObject* type)


cdef list counted = []


def count(module not None):
    """Count the objects of the module's classes from now on. Of those there must be none yet."""
    for thing in vars(module).values():
        if isinstance(thing, type) and thing.__module__ == module.__name__ and thing not in counted:
            if cf_counted_add(<PyTypeObject*>thing):
                raise MemoryError("more classes than there is room for")
            counted.append(thing)


def live_objects():
    """How many objects are alive of each class, by name; classes without any are left out."""
    return {f"{kind.__module__}.{kind.__name__}": cf_counted_alive(<PyTypeObject*>kind)
            for kind in counted if cf_counted_alive(<PyTypeObject*>kind)}
